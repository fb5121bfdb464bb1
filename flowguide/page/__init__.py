"""The page of an evaluation: one HTML file that opens from disk, with curves, a table, and samples to explore.

```python
from flowguide import evaluation, page

plan = page.plan(settings, data)  # refuses what would be too large, before anything is drawn
found = evaluation.evaluate(settings, data, folder)
page.write(folder / "evaluation.html", found, plan)
```
"""

from flowguide.page.assemble import write
from flowguide.page.choices import CONDITIONS, IMAGES, POINTS, STEPS, Plan, Wanted, plan

__all__ = ["CONDITIONS", "IMAGES", "POINTS", "STEPS", "Plan", "Wanted", "plan", "write"]
