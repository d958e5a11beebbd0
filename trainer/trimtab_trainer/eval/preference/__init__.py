"""`trimtab eval preference`: which model people prefer, from blind labels.

`labels` reads; `win_rates`, `bradley_terry`, `answers` and `bootstrap` are pure; `findings` and `tables` tell.
"""
