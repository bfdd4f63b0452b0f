# Redis as the executor insists on it: every write on its disk before it is acknowledged, and nothing evicted.
FROM redis:7-bookworm
COPY deploy/redis/redis.conf deploy/redis/start /etc/cellar/
RUN install -d -o 999 -g 999 -m 0700 /data
USER 999:999
VOLUME /data
# A large append-only file takes its time to load.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20m --retries=3 \
    CMD ["sh", "-c", "test \"$(REDISCLI_AUTH=$CELLAR_REDIS_PASSWORD redis-cli ping)\" = PONG"]
ENTRYPOINT ["/etc/cellar/start"]
