"""From requests to results; `flow` is the whole way, in order. `Localizer` makes a flow for each set of options."""
