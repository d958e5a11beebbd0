"""TrainerService: starts run processes and keeps their events. A run itself lives in `trimtab_trainer`.

The service never imports the trainer: it launches `trimtab run` as a process of its own and learns of it through
ReportEvents, so a crash of either leaves the other standing.
"""
