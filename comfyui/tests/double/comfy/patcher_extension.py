# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double: the names of wrappers, and how they are chained."""


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    CALC_COND_BATCH = "calc_cond_batch"
    APPLY_MODEL = "apply_model"
    DIFFUSION_MODEL = "diffusion_model"


class Executor:
    """What a wrapper gets first: calling it runs the next wrapper or the function."""

    def __init__(self, function, wrappers, class_obj=None):
        self.function, self.wrappers, self.class_obj = function, list(wrappers), class_obj

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.function(*args, **kwargs)
        return self.wrappers[0](Executor(self.function, self.wrappers[1:], self.class_obj), *args, **kwargs)


def wrapped(function, kind, options, class_obj=None):
    keyed = options.get("transformer_options", {}).get("wrappers", {}).get(kind, {})
    return Executor(function, [w for listed in keyed.values() for w in listed], class_obj)
