"""A report for people who would rather look: one page, of whatever a command found.

    a result ──▶ of_* ──▶ Report ──▶ drawing ──▶ Figures ──▶ rendering ──▶ one HTML file
                          (data)                 (numbers)    (jinja2)

`contents` says what a report holds, whatever command made it. The `of_` modules fill it, one for each
command. `drawing` turns its numbers into places, sizes and steps of colour; the template only puts them
down. The page asks nothing of a network, and nothing in it that came from a file is markup.
"""

from unshard.report.contents import Report
from unshard.report.writing import require_writable, write_report

__all__ = ["Report", "require_writable", "write_report"]
