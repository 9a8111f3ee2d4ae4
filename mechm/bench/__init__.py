"""The measurements of `mechm bench`: MLPerf's scenarios, stages and their limits, scaling, start, accuracy, rivals.

One file per scenario, each with a typed function that returns a frozen dataclass. `results` puts them into one JSON
document; `report`, `readme` and `figures` show it. `rivals` need torch, `figures` matplotlib; everything else runs in a
light install.
"""
