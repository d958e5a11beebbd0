"""`trimtab eval`: did a model get better, by people's comparisons, benchmarks, safety and cost.

A package for each question, whose modules return `Findings`; what several of them need is here: `findings` and pages,
`clusters` (means with intervals), `options`, `contestants` and `continuations` (models behind services). `commands` is
the command line, and none of them knows it.
"""
