"""Names of directives that do not belong to mail, but to http, stream or other modules.

nginx distinguishes a directive in the wrong place from a misspelt one, and so do we. The
names come from the command tables of nginx's, Debian's and Zimbra's modules, and from
the manuals of nginx, NGINX Plus and Angie.
"""

import re
from functools import cache
from typing import Literal

_HTTP = """
    absolute_redirect access_log add_after_body add_before_body add_header
    add_header_inherit add_trailer add_trailer_inherit addition_types aio aio_write
    alias allow ancient_browser ancient_browser_value auth_basic auth_basic_user_file
    auth_delay auth_request auth_request_set autoindex autoindex_exact_size
    autoindex_format autoindex_localtime break charset charset_map charset_types
    chunked_transfer_encoding client_body_buffer_size client_body_in_file_only
    client_body_in_single_buffer client_body_temp_path client_body_timeout
    client_header_buffer_size client_header_timeout client_max_body_size
    connection_pool_size create_full_put_path dav_access dav_methods default_type deny
    directio directio_alignment disable_symlinks early_hints empty_gif error_page etag
    expires fastcgi_bind fastcgi_buffer_size fastcgi_buffering fastcgi_buffers
    fastcgi_busy_buffers_size fastcgi_cache fastcgi_cache_background_update
    fastcgi_cache_bypass fastcgi_cache_key fastcgi_cache_lock fastcgi_cache_lock_age
    fastcgi_cache_lock_timeout fastcgi_cache_max_range_offset fastcgi_cache_methods
    fastcgi_cache_min_uses fastcgi_cache_path fastcgi_cache_revalidate
    fastcgi_cache_use_stale fastcgi_cache_valid fastcgi_catch_stderr
    fastcgi_connect_timeout fastcgi_force_ranges fastcgi_hide_header
    fastcgi_ignore_client_abort fastcgi_ignore_headers fastcgi_index
    fastcgi_intercept_errors fastcgi_keep_conn fastcgi_limit_rate
    fastcgi_max_temp_file_size fastcgi_next_upstream fastcgi_next_upstream_timeout
    fastcgi_next_upstream_tries fastcgi_no_cache fastcgi_param fastcgi_pass
    fastcgi_pass_header fastcgi_pass_request_body fastcgi_pass_request_headers
    fastcgi_read_timeout fastcgi_request_buffering fastcgi_send_lowat
    fastcgi_send_timeout fastcgi_socket_keepalive fastcgi_split_path_info fastcgi_store
    fastcgi_store_access fastcgi_temp_file_write_size fastcgi_temp_path flv geo
    grpc_bind grpc_buffer_size grpc_connect_timeout grpc_hide_header grpc_ignore_headers
    grpc_intercept_errors grpc_next_upstream grpc_next_upstream_timeout
    grpc_next_upstream_tries grpc_pass grpc_pass_header grpc_read_timeout
    grpc_send_timeout grpc_set_header grpc_socket_keepalive grpc_ssl_certificate
    grpc_ssl_certificate_cache grpc_ssl_certificate_key grpc_ssl_ciphers
    grpc_ssl_conf_command grpc_ssl_crl grpc_ssl_key_log grpc_ssl_name
    grpc_ssl_password_file grpc_ssl_protocols grpc_ssl_server_name
    grpc_ssl_session_reuse grpc_ssl_trusted_certificate grpc_ssl_verify
    grpc_ssl_verify_depth gunzip gunzip_buffers gzip gzip_buffers gzip_comp_level
    gzip_disable gzip_hash gzip_http_version gzip_min_length gzip_no_buffer gzip_proxied
    gzip_static gzip_types gzip_vary gzip_window http2 http2_body_preread_size
    http2_chunk_size http2_idle_timeout http2_max_concurrent_pushes
    http2_max_concurrent_streams http2_max_field_size http2_max_header_size
    http2_max_requests http2_pool_size http2_push http2_push_preload
    http2_recv_buffer_size http2_recv_timeout http2_streams_index_size http3 http3_hq
    http3_max_concurrent_streams http3_stream_buffer_size if if_modified_since
    ignore_invalid_headers index internal ip_hash keepalive keepalive_disable
    keepalive_min_timeout keepalive_requests keepalive_time keepalive_timeout
    large_client_header_buffers limit_conn limit_conn_dry_run
    limit_conn_log_level limit_conn_status limit_conn_zone limit_except limit_rate
    limit_rate_after limit_req limit_req_dry_run limit_req_log_level limit_req_status
    limit_req_zone lingering_close lingering_time lingering_timeout location log_format
    log_not_found log_subrequest map map_hash_bucket_size map_hash_max_size max_headers
    max_ranges memcached_bind memcached_buffer_size memcached_connect_timeout
    memcached_gzip_flag memcached_next_upstream memcached_next_upstream_timeout
    memcached_next_upstream_tries memcached_pass memcached_read_timeout
    memcached_send_timeout memcached_socket_keepalive merge_slashes min_delete_depth
    mirror mirror_request_body modern_browser modern_browser_value mp4 mp4_buffer_size
    mp4_max_buffer_size mp4_start_key_frame msie_padding msie_refresh open_file_cache
    open_file_cache_errors open_file_cache_events open_file_cache_min_uses
    open_file_cache_valid open_log_file_cache output_buffers override_charset
    port_in_redirect post_action postpone_gzipping postpone_output proxy_buffer_size
    proxy_buffering proxy_buffers proxy_busy_buffers_size proxy_cache
    proxy_cache_background_update proxy_cache_bypass proxy_cache_convert_head
    proxy_cache_key proxy_cache_lock proxy_cache_lock_age proxy_cache_lock_timeout
    proxy_cache_max_range_offset proxy_cache_methods proxy_cache_min_uses
    proxy_cache_path proxy_cache_revalidate proxy_cache_use_stale proxy_cache_valid
    proxy_cookie_domain proxy_cookie_flags proxy_cookie_path proxy_force_ranges
    proxy_headers_hash_bucket_size proxy_headers_hash_max_size proxy_hide_header
    proxy_http_version proxy_ignore_client_abort proxy_ignore_headers
    proxy_intercept_errors proxy_limit_rate proxy_max_temp_file_size proxy_method
    proxy_no_cache proxy_pass_header proxy_pass_request_body
    proxy_pass_request_headers proxy_pass_trailers proxy_read_timeout proxy_redirect
    proxy_request_buffering proxy_send_lowat proxy_send_timeout proxy_set_body
    proxy_set_header proxy_ssl_certificate_cache
    proxy_ssl_key_log proxy_store proxy_store_access proxy_temp_file_write_size
    proxy_temp_path quic_active_connection_id_limit quic_gso quic_host_key quic_retry
    random_index read_ahead real_ip_header real_ip_recursive
    recursive_error_pages referer_hash_bucket_size referer_hash_max_size
    request_pool_size reset_timedout_connection return rewrite rewrite_log root satisfy
    scgi_bind scgi_buffer_size scgi_buffering scgi_buffers scgi_busy_buffers_size
    scgi_cache scgi_cache_background_update scgi_cache_bypass scgi_cache_key
    scgi_cache_lock scgi_cache_lock_age scgi_cache_lock_timeout
    scgi_cache_max_range_offset scgi_cache_methods scgi_cache_min_uses scgi_cache_path
    scgi_cache_revalidate scgi_cache_use_stale scgi_cache_valid scgi_connect_timeout
    scgi_force_ranges scgi_hide_header scgi_ignore_client_abort scgi_ignore_headers
    scgi_intercept_errors scgi_limit_rate scgi_max_temp_file_size scgi_next_upstream
    scgi_next_upstream_timeout scgi_next_upstream_tries scgi_no_cache scgi_param
    scgi_pass scgi_pass_header scgi_pass_request_body scgi_pass_request_headers
    scgi_read_timeout scgi_request_buffering scgi_send_timeout scgi_socket_keepalive
    scgi_store scgi_store_access scgi_temp_file_write_size scgi_temp_path secure_link
    secure_link_md5 secure_link_secret send_lowat send_timeout sendfile
    sendfile_max_chunk server_name_in_redirect server_names_hash_bucket_size
    server_names_hash_max_size server_tokens set slice source_charset split_clients ssi
    ssi_ignore_recycled_buffers ssi_last_modified ssi_min_file_chunk ssi_silent_errors
    ssi_types ssi_value_length ssl_buffer_size ssl_early_data
    ssl_key_log ssl_ocsp ssl_ocsp_cache ssl_ocsp_responder
    ssl_stapling ssl_stapling_file ssl_stapling_responder ssl_stapling_verify
    stub_status sub_filter sub_filter_last_modified sub_filter_once sub_filter_types
    subrequest_output_buffer_size tcp_nodelay tcp_nopush try_files types
    types_hash_bucket_size types_hash_max_size underscores_in_headers
    uninitialized_variable_warn userid userid_domain userid_expires
    userid_flags userid_mark userid_name userid_p3p userid_path userid_service
    uwsgi_bind uwsgi_buffer_size uwsgi_buffering uwsgi_buffers uwsgi_busy_buffers_size
    uwsgi_cache uwsgi_cache_background_update uwsgi_cache_bypass uwsgi_cache_key
    uwsgi_cache_lock uwsgi_cache_lock_age uwsgi_cache_lock_timeout
    uwsgi_cache_max_range_offset uwsgi_cache_methods uwsgi_cache_min_uses
    uwsgi_cache_path uwsgi_cache_revalidate uwsgi_cache_use_stale uwsgi_cache_valid
    uwsgi_connect_timeout uwsgi_force_ranges uwsgi_hide_header uwsgi_ignore_client_abort
    uwsgi_ignore_headers uwsgi_intercept_errors uwsgi_limit_rate
    uwsgi_max_temp_file_size uwsgi_modifier1 uwsgi_modifier2 uwsgi_next_upstream
    uwsgi_next_upstream_timeout uwsgi_next_upstream_tries uwsgi_no_cache uwsgi_param
    uwsgi_pass uwsgi_pass_header uwsgi_pass_request_body uwsgi_pass_request_headers
    uwsgi_read_timeout uwsgi_request_buffering uwsgi_send_timeout uwsgi_socket_keepalive
    uwsgi_ssl_certificate uwsgi_ssl_certificate_cache uwsgi_ssl_certificate_key
    uwsgi_ssl_ciphers uwsgi_ssl_conf_command uwsgi_ssl_crl uwsgi_ssl_key_log
    uwsgi_ssl_name uwsgi_ssl_password_file uwsgi_ssl_protocols uwsgi_ssl_server_name
    uwsgi_ssl_session_reuse uwsgi_ssl_trusted_certificate uwsgi_ssl_verify
    uwsgi_ssl_verify_depth uwsgi_store uwsgi_store_access uwsgi_string
    uwsgi_temp_file_write_size uwsgi_temp_path valid_referers variables_hash_bucket_size
    variables_hash_max_size
"""
HTTP = frozenset(_HTTP.split())
"""The directives of nginx's HTTP modules that mail does not have."""

_STREAM = """
    pass preread_buffer_size preread_timeout proxy_download_rate proxy_downstream_buffer
    proxy_half_close proxy_protocol_timeout proxy_requests proxy_responses
    proxy_session_drop proxy_upload_rate proxy_upstream_buffer ssl_alpn
    ssl_handshake_timeout ssl_preread
"""
STREAM = frozenset(_STREAM.split())
"""The directives of nginx's stream modules that neither mail nor http has.

An nginx without the stream module does not know them.
"""

_MODULES = {
    "http": r"""
        geoip_\w+ image_filter(_\w+)? perl(_\w+)? xml_entities xslt_\w+
    """,
    "http and stream": r"js_\w+ geoip2(_\w+)?",
    "http and stream in NGINX Plus and Angie": r"""
        acme_\w+ api auth_jwt(_\w+)? docker_\w+ keyval(_zone)?
        oidc_\w+ otel_\w+ session_log(_\w+)? state status_zone sticky(_\w+)?
        upstream_probe(_\w+)? zone_sync(_\w+)?
    """,
    "Lua (OpenResty)": r"\w+_by_lua(_block|_file)? lua_\w+",
    "the RTMP module": r"rtmp(_\w+)?",
    "a module of http that others have made": r"""
        auth_(digest|ldap|pam|spnego)\w* brotli(_\w+)? dav_ext_\w+ echo(_\w+)? fair
        fancyindex(_\w+)? ldap_server memc_\w+ modsecurity(_\w+)?
        more_(clear|set)(_input)?_headers nchan_\w+ opentelemetry\w* opentracing\w*
        pagespeed passenger_\w+ push_stream_\w+ redis2?_\w+ report_uploads
        set_(base32|decode|encode|escape|formatted|hashed|hmac|if_empty|local_today|md5
        |misc|quote|random|rotate|secure_random|sha1|unescape)\w* srcache_\w+
        subs_\w+ track_uploads upload_\w+ vhost_traffic_status\w*
        \w+_cache_purge zstd(_\w+)?
    """,
}
_MAIL = {
    "Zimbra's nginx": r"""
        auth_wait default_realm imap_greeting imap_literalauth
        mail_(login|whitelist)_\w+ master_auth_(username|password)
        memcache_(entry_allow_unqualified|entry_ttl|reconnect_interval|servers|timeout)
        pop3_greeting proxy_ctimeout proxy_issue_(imap_id|pop3_xoip)
        sasl_(app_name|host_from_ip|service_name) zm_\w+ zmauth(_admin)? zmroute\w+
    """,
    "ngx_mail_mruby": r"mruby_mail_\w+",
}


def module_of(name: str) -> str | None:
    """The module that a directive belongs to; nginx alone does not know it."""
    return _owner(name, "module")


def extension_of(name: str) -> str | None:
    """The same, for directives that others have added to nginx's mail."""
    return _owner(name, "mail")


def _owner(name: str, kind: Literal["module", "mail"]) -> str | None:
    found = (owner for pattern, owner in _patterns(kind) if pattern.fullmatch(name))
    return next(found, None)


@cache
def _patterns(
    kind: Literal["module", "mail"],
) -> tuple[tuple[re.Pattern[str], str], ...]:
    """The patterns of whole names, compiled when there is an error to explain."""
    table = _MODULES if kind == "module" else _MAIL
    return tuple(
        (re.compile("|".join(re.sub(r"\s+\|", "|", names).split()), re.ASCII), owner)
        for owner, names in table.items()
    )
