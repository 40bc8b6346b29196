"""Hold the table that `make run` wrote against what the project promises for the digits."""

import json
import sys
from pathlib import Path

import pandas as pd

# By the judge that decides, which searched nothing, and by the classifier that searched.
table = pd.read_csv("results/frechet.csv").set_index("nfe")
records = {k: json.loads(Path(f"metrics/{k}.json").read_text()) for k in table.index}
fine = json.loads(Path("metrics/teacher.json").read_text())["fine"]
searched = table.copy()
for variant in table:
    searched[variant] = [records[k][variant]["frechet_classifier"] for k in table.index]
floors = fine["frechet_second_classifier"], fine["frechet_classifier"]
for shown, floor in zip((table, searched), floors, strict=True):
    print(shown.to_string(), f"\nfloor: {floor:.4g}")
promises = {
    "a row for every budget": list(table.index) == [2, 4, 6, 8],
    "the table is the second classifier's": all(
        records[k][v]["frechet_second_classifier"] == value
        for v, column in table.items()
        for k, value in column.items()
    ),
    "every distance has its standard error": all(
        0 < records[k][v][f"frechet_{judge}_se"] < records[k][v][f"frechet_{judge}"]
        for judge in ("second_classifier", "classifier")
        for v in table
        for k in table.index
    ),
    "at K = 2 straightening lowers the distance at least tenfold": (
        searched.boss[2] * 10 <= searched.pretrained_uniform[2]
    ),
    "and fivefold by the second classifier": table.boss[2] * 5 <= table.pretrained_uniform[2],
    "at every K BOSS is at least as good as pretrained + Bellman": all(
        (by.boss <= by.pretrained_bellman).all() for by in (table, searched)
    ),
    "the chosen steps are there": "chosen_straightened" in table,
    "no variant is below the half of the floor": all(
        (by > floor / 2).all(axis=None) for by, floor in zip((table, searched), floors, strict=True)
    ),
    "the report is there": Path("results/report.html").stat().st_size > 100_000,
}
for promise, kept in promises.items():
    print("kept  " if kept else "BROKEN", promise)
sys.exit(not all(promises.values()))
