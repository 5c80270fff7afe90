"""The side-by-side speed comparison behind `scripts/benchmark`: see `scripts/benchmark --help`.

tasks.py says what is measured, contenders/ holds one file a contender, child.py is the process that a contender runs in,
measure.py takes turns and reads the clocks, report.py and plot.py make text and pictures of results, growth.py asks
whether streamkit stays flat. A contender's process needs NumPy and its own packages only, never streamkit.
"""
