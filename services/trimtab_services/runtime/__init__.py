"""What every service shares. It knows no service; `server.run_service` is the way in.

config     one YAML file, the environment over it; wrong keys in one line, before torch is imported
server     ports, handlers, background work, drain, exit codes
state      where a server is in its life; what a service gets from its server (`Runtime`)
errors     around every gRPC call: name, caller, scope, state, deadline, metrics, log, typed errors
http       the same for HTTP routes, and the metrics port
auth       tokens, scopes and the table of methods
health, info, metrics, logs, calls   what their names say
scheduler  batches items of many callers by token budget onto one compute thread
slots      the model being served, and how a newer version takes its place
replica    follows a channel of the weights service
"""
