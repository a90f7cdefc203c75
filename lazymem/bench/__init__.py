"""What does lazymem cost? Measuring code; `command` is the door, and nothing here is imported before it is used."""
