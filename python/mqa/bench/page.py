"""The report as one HTML page that holds its plots."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2

from mqa.bench.report import Report, notes, tables

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>mqa bench</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem }
  table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
  th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
  th:first-child, td:first-child { text-align: left }
  .scroll { overflow: auto; max-height: 40rem }
  img { max-width: 100% }
</style>
<h1>mqa bench</h1>
<p>{% for name, text in facts.items() %}{{ name }}: {{ text }}<br>{% endfor %}</p>
{% for plot in plots %}
<p><img src="data:image/png;base64,{{ plot.data }}" alt="{{ plot.name }}"></p>
{% endfor %}
{% for table in tables|reverse %}<h2>{{ table.title }}</h2>
<div class="scroll"><table>
<tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
</html>
"""


def render(report: Report, plots: Sequence[Path]) -> str:
    """The page; plots are read from PNG files."""
    return jinja2.Template(TEMPLATE, autoescape=True).render(
        facts={**report.machine, **report.versions, "command": shlex.join(report.command)},
        plots=[
            {"name": path.stem, "data": base64.b64encode(path.read_bytes()).decode()}
            for path in plots
        ],
        tables=tables(report),
        notes=notes(report),
    )
