// Copyright The distorch authors.
// SPDX-License-Identifier: GPL-3.0-or-later

import { app } from "../../scripts/app.js";

app.registerExtension({
	name: "distorch",
	settings: [
		{
			id: "distorch.connection",
			category: ["distorch", "Cluster", "Connection"],
			name: "Connection",
			type: "text",
			defaultValue: "",
			attrs: { type: "password", autocomplete: "off" },
			tooltip: "The line that `distorch token create --client NAME` prints, or the path of a file with it. Empty: distorch.txt in ComfyUI's user directory.",
		},
	],
});
