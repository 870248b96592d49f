"""What the API server asks before it stores an InferenceService: the third place where specs are checked.

    serving = asyncio.create_task(serve_webhook(api, options, find_facts, find_infeasible))  # until cancelled

The schema with its CEL rules comes first and refuses most; what is left are rules that need arithmetic, what is inside
of pod templates, and what a model makes impossible. The reconciler has the same rules, so that nothing gets past them
while no operator answers: a refusal here only comes sooner, and where people look.

`review.py` is pure: request in, answer out. `certificates.py` issues, `keeping.py` shares between
operators what was issued, `configuration.py` is the ValidatingWebhookConfiguration, `server.py` serves.
"""

from shoal.operator.webhook.configuration import validating_webhook_configuration
from shoal.operator.webhook.server import WebhookOptions, running_webhook, serve_webhook

__all__ = ["WebhookOptions", "running_webhook", "serve_webhook", "validating_webhook_configuration"]
