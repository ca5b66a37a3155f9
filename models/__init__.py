"""One file a reference model or family. Each implements `harness.api.ReferenceModel`."""
