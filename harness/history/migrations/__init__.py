"""How the tables came to be, a step a file in `versions/`. Run by `harness.history.database`, never by hand."""
