"""`trimtab eval`: did a model get better, by people's comparisons, benchmarks, safety and cost.

Each module measures one thing and returns `Findings`; `commands` is the command line, and none of them knows it.
"""
