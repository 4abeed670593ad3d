"""Studies: random networks whose gains are known from the literature, audited through the public API; ``make studies`` runs them all."""
