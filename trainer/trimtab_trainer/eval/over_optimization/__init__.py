"""`trimtab eval over-optimization`: reward and gold over the KL; `curve` is the fit, `runs` reads what is fitted."""
