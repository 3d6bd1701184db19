"""`melora compare`: a study of methods, tasks and seeds, each method at its own learning rate, and its report."""
