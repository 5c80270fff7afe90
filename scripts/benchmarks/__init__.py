"""The side-by-side speed comparison behind `scripts/benchmark`: see `scripts/benchmark --help`.

tasks.py says what is measured, contenders/ holds one file a contender, environments.py makes the one it runs in, child.py
is its process and session.py the other end of it, measure.py lets all take turns, report.py and plot.py make text and
pictures of results, growth.py asks whether streamkit stays flat. A contender's process needs NumPy and its own packages
only, never streamkit.
"""
