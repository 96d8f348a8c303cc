"""What the model files of every family look like: tables, and how their configuration reads."""
