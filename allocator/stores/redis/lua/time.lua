-- The time of the server that has the common keys. KEYS: store. Answers {seconds since the epoch, microseconds}.

return redis.call('TIME')
