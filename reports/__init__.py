"""One file a format. All of them draw the format-free report of `reports/table.py`."""
