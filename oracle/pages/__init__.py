"""How does it look? What the commands print and the pages they write have in common."""
