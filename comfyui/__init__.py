# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""distorch for ComfyUI: a MODEL whose forward runs on a cluster."""

from .demo import DemoPicture, DemoText
from .nodes import ClusterStatus, LoadDiffusionModel, Plan, Workload

WEB_DIRECTORY = "./web"

NODE_CLASS_MAPPINGS = {
    "DistorchLoadDiffusionModel": LoadDiffusionModel,
    "DistorchWorkload": Workload,
    "DistorchClusterStatus": ClusterStatus,
    "DistorchPlan": Plan,
    "DistorchDemoText": DemoText,
    "DistorchDemoPicture": DemoPicture,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "DistorchLoadDiffusionModel": "Load Diffusion Model (distorch)",
    "DistorchWorkload": "Workload (distorch)",
    "DistorchClusterStatus": "Cluster Status (distorch)",
    "DistorchPlan": "Plan (distorch)",
    "DistorchDemoText": "Demo Text (distorch)",
    "DistorchDemoPicture": "Demo Picture (distorch)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
