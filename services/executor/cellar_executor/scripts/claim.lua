-- The first request with an idempotency key claims it. KEYS: answer. ARGV: digest of the request, nonce, ttl_s.
-- Returns {'first', nonce}, {'mismatch'}, {'unanswered', nonce of the first} or {'answered', nonce, status, body}.
local answer = KEYS[1]
if redis.call('HSETNX', answer, 'digest', ARGV[1]) == 1 then
  redis.call('HSET', answer, 'nonce', ARGV[2])
  redis.call('EXPIRE', answer, ARGV[3])
  return {'first', ARGV[2]}
end
local digest, nonce, status, body = unpack(redis.call('HMGET', answer, 'digest', 'nonce', 'status', 'body'))
if digest ~= ARGV[1] then return {'mismatch'} end
if status then return {'answered', nonce, status, body} end
return {'unanswered', nonce}
