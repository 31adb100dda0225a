"""The manager's ends of the wire: sockets and the connections behind them."""
