# Redis as the executor insists on it: every write on its disk before it is acknowledged, and nothing evicted.
FROM redis:7-bookworm
COPY deploy/redis/redis.conf deploy/redis/start /etc/cellar/
RUN install -d -o 999 -g 999 -m 0700 /data
USER 999:999
VOLUME /data
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["sh", "-c", "test \"$(REDISCLI_AUTH=$CELLAR_REDIS_PASSWORD redis-cli ping)\" = PONG"]
ENTRYPOINT ["/etc/cellar/start"]
