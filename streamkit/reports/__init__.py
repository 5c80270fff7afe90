"""What people see: tables and JSON of what was done and what is there.

>>> from streamkit.reports.text import human
>>> human(1_500_000)
'1.5 MB'
"""
