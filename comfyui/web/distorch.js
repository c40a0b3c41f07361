// Copyright The distorch authors.
// SPDX-License-Identifier: GPL-3.0-or-later

import { app } from "../../scripts/app.js";

// Nodes that have something to say show it as text below their inputs.
const TEXTS = ["DistorchClusterStatus", "DistorchPlan"];

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
	beforeRegisterNodeDef(nodeType, nodeData) {
		if (!TEXTS.includes(nodeData.name)) {
			return;
		}
		const before = nodeType.prototype.onExecuted;
		nodeType.prototype.onExecuted = function (message) {
			before?.apply(this, arguments);
			const text = message?.text?.join("\n");
			if (text === undefined) {
				return;
			}
			let shown = this.widgets?.find((w) => w.name === "distorch_text");
			if (!shown && this.addDOMWidget) {
				const area = document.createElement("textarea");
				area.readOnly = true;
				area.className = "comfy-multiline-input";
				shown = this.addDOMWidget("distorch_text", "customtext", area, {
					serialize: false,
					getValue: () => area.value,
					setValue: (value) => {
						area.value = value;
					},
				});
				shown.serialize = false; // neither in prompts nor in workflows
			}
			if (shown) {
				shown.value = text;
			}
			this.setDirtyCanvas?.(true, true);
		};
	},
});
