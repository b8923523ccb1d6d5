// Starts the page of a traced forward pass; its parts are in the other scripts of this name.
"use strict";

drawOverview();
startSteps();
startAttention();
byId("fw-residual").append(...columns(residualPanel));
byId("fw-lens").append(...columns(lensPanel));
drawDifferences();
