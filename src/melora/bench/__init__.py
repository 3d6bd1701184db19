"""`melora bench`: what an adapter costs beside the frozen base and beside its peers, timed in turns in one run.

peers.py and own_peers.py say who takes part, attach.py and models.py build it, timing.py, memory.py and disk.py measure
it. A suite (suites/, one file per question asked) makes groups; group.py measures one, row.py and store.py write it
down, report.py, markdown.py, targets.py and plots.py show it. options.py, presets.py, estimate.py, runner.py and cli.py
are the command.
"""
