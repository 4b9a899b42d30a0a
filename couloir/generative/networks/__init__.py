"""Networks: functions of (x_t, noise, condition) that :func:`couloir.generative.training.train` can fit."""
