"""Prints the tables of ``evaluate``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from flowguide.evaluation import Evaluation
from flowguide.evaluation.table import caption, tables


def print_tables(found: Evaluation) -> None:
    """Prints all metrics, and adherence by field if there are several."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)  # a file has no width of its own
    for content in tables(found):
        first, *others = content.headings
        table = Table()
        table.add_column(first, no_wrap=True)
        for name in others:
            table.add_column(name, justify="right")
        for row in content.rows:
            table.add_row(*row)
        console.print(table)
    console.print(caption(found))
