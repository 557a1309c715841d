"""The annotation session and the event log behind it: the one thing in the chain a person makes."""
