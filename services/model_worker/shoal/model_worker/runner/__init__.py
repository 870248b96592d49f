"""StepPlan to tensors to StepResult."""
