"""The other DSPy programs: the suggester for annotators and the judge behind every score."""
