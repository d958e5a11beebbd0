"""What every service shares. It knows no service; `server.run_service` is the way in.

config     one YAML file, the environment over it; wrong keys in one line (config_errors), before torch is imported
server     ports, handlers, background work, drain, exit codes
state      where a server is in its life; what a service gets from its server (`Runtime`)
errors     around every gRPC call: name, caller, scope, state, quota, deadline, typed errors
http       the same for HTTP routes, and the metrics port; json_body reads what callers send
observation   what is counted, logged and traced of a call
auth       tokens, scopes and the table of methods
quota      requests and tokens a second, for each caller
certificates, watched   TLS that follows its files
health, info, metrics, logs, tracing, calls   what their names say
scheduler  batches items of many callers by token budget onto one compute thread
slots      the model being served, and how a newer version takes its place
replica    follows a channel of the weights service
"""
