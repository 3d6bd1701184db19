"""`melora bench`: what an adapter costs beside the frozen base and beside its peers, timed in turns in one run.

problem.py says what one shape is, peers.py builds its contestants, timing.py and memory.py measure them, suites/ holds
one file per question asked, row.py and report.py write the answers down, cli.py is the command.
"""
