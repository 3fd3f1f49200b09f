"""Pictures and pages made from dumped files; nothing here imports torch."""
