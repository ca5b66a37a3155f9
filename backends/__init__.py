"""One file a backend. Each implements `harness.api.Backend`; `harness/registry.py` lists them."""
