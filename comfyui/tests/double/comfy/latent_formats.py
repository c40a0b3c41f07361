# Copyright The distorch authors.
# SPDX-License-Identifier: GPL-3.0-or-later

"""Double: FLUX's latent format."""


class Flux:
    latent_channels = 16

    def __init__(self):
        self.latent_rgb_factors = [[0.0, 0.0, 0.0]] * 16
        self.latent_rgb_factors_bias = [0.0, 0.0, 0.0]

    def process_in(self, latent):
        return (latent - 0.1159) * 0.3611

    def process_out(self, latent):
        return latent / 0.3611 + 0.1159
