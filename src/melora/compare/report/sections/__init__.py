"""The report's sections, one a file, each from a study alone."""
