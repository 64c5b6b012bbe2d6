"""Reports of a run: tables for the terminal, a self-contained HTML page, a contact sheet."""
