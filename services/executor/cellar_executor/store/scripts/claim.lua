-- The first request with an idempotency key claims it. KEYS: answer, lease. ARGV: instance, digest of the request, nonce, ttl_s.
-- Returns {'first', nonce}, {'mismatch'}, {'in_progress'} while another server answers it, {'answered', nonce, status, body},
-- or {'unanswered', nonce of the first} when the server that claimed it is gone, or was this one: then it is ours.
local answer, lease = KEYS[1], KEYS[2]
if redis.call('EXISTS', lease) == 0 then return redis.error_reply('FENCED the lease of this server has ended') end
if redis.call('HSETNX', answer, 'digest', ARGV[2]) == 1 then
  redis.call('HSET', answer, 'nonce', ARGV[3], 'instance', ARGV[1])
  redis.call('EXPIRE', answer, ARGV[4])
  return {'first', ARGV[3]}
end
local digest, nonce, instance, status, body =
  unpack(redis.call('HMGET', answer, 'digest', 'nonce', 'instance', 'status', 'body'))
if digest ~= ARGV[2] then return {'mismatch'} end
if status then return {'answered', nonce, status, body} end
if instance and instance ~= ARGV[1] and redis.call('EXISTS', 'cellar:instance:' .. instance) == 1 then
  return {'in_progress'}
end
redis.call('HSET', answer, 'instance', ARGV[1])
return {'unanswered', nonce}
