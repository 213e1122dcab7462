-- What web_load.py wants to know of a run of wrk: its last line is JSON. wrk counts in microseconds.
function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '{"count": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "max_ms": %f, '
         .. '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
      e.connect, e.read, e.write, e.status, e.timeout))
end
