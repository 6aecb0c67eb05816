"""The report of a run as one self-contained page, and the release of its networks."""
