"""containerd's API v1 over gRPC: a front end that calls the services `ctl` is served by.

`server` binds the socket and finds methods by the descriptors, `calls` is what every method is
given, one module per service translates. `protos/` are the messages as containerd has them on the
wire, `pb/` what `make protos` generates from them. Nothing outside this package imports grpc.
"""
