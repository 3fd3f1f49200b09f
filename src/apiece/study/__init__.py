"""Studies: two runs compared, a ladder of runs measured, and the explanation of one."""
