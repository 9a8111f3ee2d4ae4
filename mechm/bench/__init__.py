"""What `mechm bench` measures: MLPerf's scenarios, stages and their limits, growth, memory, start, accuracy, rivals.

One file a scenario, each a typed function that returns a frozen dataclass; `results` puts them into one JSON document,
and `report`, `readme` and `figures` show it. `rivals` need torch, everything else runs in a light install.
"""
