"""The loss terms: functions of tensors that give sums; `compose` weighs them and divides by the step's counts."""
