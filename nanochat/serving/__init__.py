"""The chat server: limits, api (OpenAI's shapes), answer, worker, guard, app, server, logs. nanochat.serve starts it."""
